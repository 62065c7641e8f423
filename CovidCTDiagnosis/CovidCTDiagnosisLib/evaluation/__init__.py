"""How good and how fast a bundle is: metrics, measurements on data it has not learned from, benchmarks."""
