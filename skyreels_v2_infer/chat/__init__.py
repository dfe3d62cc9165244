"""Language models that answer a text: loaded here, or behind an endpoint."""
