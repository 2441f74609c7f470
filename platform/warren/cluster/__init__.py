"""The wiring to Ray: sessions, trainer, datasets, serve target. Ray starts only here, in warren_serve and in jobs."""
