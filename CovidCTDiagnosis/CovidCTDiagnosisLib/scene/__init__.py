"""The result of an analysis in a MRML scene: nodes, colours, slice layers and off-screen pictures of them."""
