"""Read, check, pack, split and batch images."""
