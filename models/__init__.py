"""Builders to use and to copy: a file holds one ``build_model(features, target, **options) -> keras.Model``, or what builders share.

Shared are ``layers`` (custom layers), ``augmentation`` (of images) and ``options`` (checks).
"""
