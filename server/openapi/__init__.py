"""The OpenAPI document: made from the structs and tables that validate requests, and from the app's own routes."""
