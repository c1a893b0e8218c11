"""Texture Auth: may the holder of this API key act on this device?"""
