"""The HTTP service: settings, schemas, the cascade, the worker that owns the device, and the routes.

`python -m service` starts it. Only `service.cascade` touches the models, and only when a worker calls it,
so importing the rest loads neither torch nor diffusers.
"""
