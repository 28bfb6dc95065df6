"""Builders to use and to copy: each file holds one ``build_model(features, target, **options) -> keras.Model``."""
