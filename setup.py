"""What pyproject.toml cannot express: the top-level folder `conf` is installed as the package `evopress.conf`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["evopress", "evopress.*"]), "evopress.conf"],
    package_dir={"evopress.conf": "conf"},
    package_data={"evopress": ["assets/**/*"], "evopress.conf": ["**/*.yaml"]},
)
