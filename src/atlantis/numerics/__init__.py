"""Pure numerics: arrays in, arrays out; no models, files, clocks or global randomness."""
