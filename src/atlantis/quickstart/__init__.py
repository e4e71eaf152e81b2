"""The data and tiny models of the demonstrations, made on the spot: `quickstart`, word problems."""
