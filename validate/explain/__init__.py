"""Where a bundle leaves the reference: layer by layer, and within a layer place by place."""
