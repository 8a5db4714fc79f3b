"""Requests and answers: protocol, limits, errors and files."""
