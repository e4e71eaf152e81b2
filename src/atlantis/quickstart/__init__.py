"""The embedded corpus and the tiny model family of `atlantis quickstart`, made on the spot."""
