"""Whether releases roll in, and bad ones are undone, while clients ask and parts of the endpoint are killed."""
