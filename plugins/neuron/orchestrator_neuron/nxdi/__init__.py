"""The device ``nxdi``: NxD Inference itself, imported when a plan is compiled and not before.

    packages          the packages that must be installed, and the error where they are not
    classes           NxD Inference's base classes, filled in; importing it imports NxD Inference
    application       compiling and loading the programs of one stage
    renamed           a torch whose spare device type has another name
    calls             running a loaded program on ranked values
    importer          ``from_nxdi``
    adopt             stages that users wrote for NxD Inference
    submodels         applications with several submodels, with their ports and models
    user_application  a user's whole application, which compiles and loads itself
    read, checks      reading a user's objects, and refusing those that cannot work

The backend that puts it together is in ``backend``.
"""
