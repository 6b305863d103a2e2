"""From fitted models to a bundle on disk, behind a parity gate."""
