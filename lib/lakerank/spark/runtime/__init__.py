"""The Spark session, and how tasks exchange Arrow data."""
