"""Documents, and the check that what they say is held by something: ``make docs``."""
