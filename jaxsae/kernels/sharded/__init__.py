"""Ops on a mesh: the same function of global arrays, computed by `shard_map` on the parts each device holds.

Rows lie on the mesh axis `data`, latents on `latent`.  Every wrapper looks at the mesh in force; without one, or where
both axes have a single device, it is the plain op.  What travels between devices is what has to: candidates of a
selection, sums over latents of [B, E], sums over rows of gradients.  Dense [B, S] arrays never do.
"""
