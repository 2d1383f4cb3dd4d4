"""The settings of a run: their definition, their description, profiles and the commands that ask for them."""
