"""Methods beyond MeZO and LeZO, one file a method or a few of a kind: settings, parts, `Method`."""
