"""From the logs that others write to our outcome log: `broker import`."""
