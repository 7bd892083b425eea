"""The one thing that pyproject.toml cannot say: ``conf/`` ships as ``grasp_rl/conf``, every folder of it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["grasp_rl", "grasp_rl.*"]), "grasp_rl.conf"],
    package_dir={"grasp_rl": "grasp_rl", "grasp_rl.conf": "conf"},
    package_data={
        "": ["py.typed", "templates/*.jinja", "weights*/*"],
        "grasp_rl.conf": ["**/*.yaml"],
        "grasp_rl.segmenters.synthetic": ["*/*"],
    },
)
