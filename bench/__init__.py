"""How fast the service is, in ratios that a noisy machine cannot spoil: `make bench`."""
