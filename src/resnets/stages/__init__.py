"""Run the stages of dvc.yaml: one small script each, which loads, calls and saves."""
