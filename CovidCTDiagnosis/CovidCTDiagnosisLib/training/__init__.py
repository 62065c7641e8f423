"""How the bundle's weights are made: data sources, labels, augmentation, recipes. Nothing in the core imports it."""
