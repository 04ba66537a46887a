"""OpenAI's API: one module per resource, one for errors, one for events, one for shapes."""
