"""Open a packed task: decoding, the table of images, and its sides."""
