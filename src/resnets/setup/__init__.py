"""Set up the pipeline for a folder of photos: look, choose, and write params.yaml."""
