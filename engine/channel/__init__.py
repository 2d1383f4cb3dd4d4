"""The link between a phase and its run: events to the screens, requests to the phase, short memory."""
