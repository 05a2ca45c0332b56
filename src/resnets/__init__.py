"""Train, transfer, compare and ship image classifiers of the ResNet family."""
