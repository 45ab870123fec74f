"""Workers as Ray actors: the only folder that imports Ray, beside `launch/submit.py` and `workers/prometheus.py`."""
