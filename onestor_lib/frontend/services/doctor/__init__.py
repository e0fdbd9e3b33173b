"""onestor doctor: what is asked of the front-end and all hosts, and what is made of the answers.

``findings`` is what comes out; ``asking`` collects facts, all at once; ``frontend``, ``hosts`` and
``datastores`` judge them.
"""
