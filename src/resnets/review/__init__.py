"""Compare two revisions of the project and write the page for a pull request."""
