"""How the embedded model is made: its world, the judge that reads videos, and the trainers. Not part of the package."""
