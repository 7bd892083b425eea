"""What pyproject.toml cannot say: ``conf/`` ships as ``grasp_rl/conf``, all of it, and the published figures, too."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["grasp_rl", "grasp_rl.*"]), "grasp_rl.conf", "grasp_rl.experiments"],
    package_dir={"grasp_rl": "grasp_rl", "grasp_rl.conf": "conf", "grasp_rl.experiments": "experiments"},
    package_data={
        "": ["py.typed", "templates/*.jinja", "weights*/*"],
        "grasp_rl.conf": ["**/*.yaml"],
        "grasp_rl.experiments": ["published.yaml"],
        "grasp_rl.segmenters.synthetic": ["*/*"],
        "grasp_rl.demo": ["scenes/*", "static/*"],
    },
)
