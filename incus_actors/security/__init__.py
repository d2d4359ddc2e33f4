"""Certificates, tokens and TLS contexts."""
