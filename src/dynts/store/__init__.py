"""Durable files of long jobs: written whole, pinned by a manifest, held by one job at a time."""
