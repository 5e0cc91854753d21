"""From bytes to pixels: sources, tiling, pages, frames, tile packs; every decoder runs in a limited child."""
