"""Tests, by what they test; `chaos` and `bench` are programs of their own."""
