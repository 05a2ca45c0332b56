"""Deal with the machine: errors and exit codes, files, devices, progress."""
