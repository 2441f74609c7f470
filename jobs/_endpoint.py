"""The endpoint file of a job: it is read here, because the library below does not know what serves."""

from warren.cli.job import Job, config_folders
from warren.cli.release import DEFAULT_ENDPOINT, rollout_preview
from warren.cluster.serve.endpoint_config import EndpointSpec
from warren.config import load_config
from warren_serve.endpoint_file import EndpointFile


def file_of(job: Job) -> EndpointFile:
    """Return the endpoint file that the job names, or the one of an endpoint that has to be deployed without."""
    named = job.options.endpoint or DEFAULT_ENDPOINT
    file = load_config(EndpointFile, named, config_folders("endpoints"), job.sets("endpoint"))
    file.require_release(job.recipe.require("release").name)
    return file


def endpoint_of(job: Job) -> EndpointSpec:
    """Return the endpoint as its file declares it."""
    file = file_of(job)
    file.check_haproxy()
    return EndpointSpec(file.application, file.route_prefix, file.application_args(), file.serve.to_config())


def preview(job: Job) -> str:
    file = file_of(job)
    where = "nothing is deployed" if job.options.no_deploy else f"{file.application!r} at {file.route_prefix}"
    lines = [
        f"release: a version of {job.recipe.require('release').name!r}, if it passes the gate",
        f"endpoint: {where}",
    ]
    return "\n".join(lines if job.options.no_deploy else [*lines, *rollout_preview(file.rollout)])
