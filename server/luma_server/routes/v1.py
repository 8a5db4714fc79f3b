"""All routes of the HTTP interface, version 1, in the order in which they are tried."""

from fastapi import APIRouter

from luma_server.routes import checkpoints, files, jobs, operations, statistics, uploads
from luma_server.routes.common import PROBLEM

router = APIRouter(responses=PROBLEM)
for _module in (operations, checkpoints, files, statistics, uploads, jobs):
    router.include_router(_module.router)
