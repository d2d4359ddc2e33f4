"""The Incus 1.0 REST API over aiohttp."""
