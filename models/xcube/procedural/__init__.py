"""Procedural shapes and scenes: furniture, lamps, cars, airplanes, and streets with a simulated LiDAR scanner."""
