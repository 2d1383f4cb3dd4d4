"""Tests of TinyDistill; the tree mirrors the packages."""
