"""One of jobs/*.py as an Airflow task: a SparkSubmitOperator that sets the run id and reads the job's summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import BaseOperatorLink
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.sdk.execution_time.xcom import XCom
from airflow.sdk.observability import stats

from lake_tasks.places import below
from lake_tasks.run_names import LakeRun, moment_of
from lake_tasks.summaries import final_fault, last_json_line, read_summary, summary_address


class ReportLink(BaseOperatorLink):
    """The button that opens the run's report.html."""

    name = "report.html"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The report's address; empty while there is none."""
        return XCom.get_value(ti_key=ti_key, key="report") or ""


class LakeJob(SparkSubmitOperator):
    """Submit a job; its summary becomes the task's XCom.

    A failed audit or a wrong config fails the task at once: a retry would end the same way. Anything else is tried
    again, which costs little, since a run resumes where it stopped.

    Args:
        job: name of the file in jobs/, without .py.
        home: folder of jobs/ and conf/ as spark-submit sees it.
        summaries: folder or URI for last lines, which Airflow's workers and the Spark drivers both reach.
        timezone: the time zone of dates.
        lake: the lake's name, which its run ids begin with; None where there is but one.
        report_url: where a browser finds the report; {run_id} is filled in. None: the address in the lake.
        arguments: arguments of this job alone; {run_id}, {date} and {lake} are filled in.
        options: option of the job by name of the Param that it takes its value from; true gives the bare option, and
            null or false nothing.
        names_run: whether the job takes --run-id.
        unless_false: (task id, key): skip this task when that task's summary has a false value there.
    """

    operator_extra_links = (ReportLink(),)
    #: The command line is built when the task runs, so that the rendered template shows it afterwards.
    overwrite_rtif_after_execution = True

    def __init__(
        self,
        *,
        job: str,
        home: str,
        summaries: str,
        timezone: str = "UTC",
        lake: str | None = None,
        report_url: str | None = None,
        arguments: Sequence[str] = (),
        options: Mapping[str, str] | None = None,
        names_run: bool = True,
        unless_false: tuple[str, str] | None = None,
        **spark: Any,
    ) -> None:
        super().__init__(application=below(home, f"jobs/{job}.py"), name=f"lakerank-{job}", **spark)
        self.job = job
        self.home = home
        self.summaries = summaries
        self.timezone = timezone
        self.lake = lake
        self.report_url = report_url
        self.arguments = arguments
        self.options = options or {}
        self.names_run = names_run
        self.unless_false = unless_false

    def execute(self, context: Any) -> dict[str, Any] | None:
        """Submit, wait, and return the job's summary."""
        self._skip_if_not_needed(context)
        address = self.summary_address(context)
        self.application_args = [*self._command_line(context), "--summary", address]
        try:
            super().execute(context)
        except Exception as error:
            summary = read_summary(address) or last_json_line(str(error))
            if summary is None:  # killed before it wrote a summary
                raise
            fault = final_fault(summary)
            if fault:
                raise AirflowFailException(fault) from error
            raise AirflowException(f"{summary.get('error')}: {summary.get('message')}") from error
        return self._succeeded(context, read_summary(address) or {})

    def summary_address(self, context: Any) -> str:
        """Where this try of the task has the job leave its summary."""
        return summary_address(self.summaries, self._run(context).run_id, context["ti"])

    def _run(self, context: Any) -> LakeRun:
        return LakeRun(moment_of(context["dag_run"], context["params"], self.timezone), self.lake)

    def _skip_if_not_needed(self, context: Any) -> None:
        if self.unless_false is None:
            return
        task, key = self.unless_false
        summary = context["ti"].xcom_pull(task_ids=task) or {}
        if not summary.get(key, True):
            raise AirflowSkipException(f"in the summary of {task}, {key} is {summary[key]}")

    def _command_line(self, context: Any) -> list[str]:
        params, run = context["params"], self._run(context)
        line = ["--config", below(self.home, params["config"])]
        if self.names_run:
            line += ["--run-id", run.run_id]
        line += [run.fill(str(argument)) for argument in self.arguments]
        for param, option in self.options.items():
            value = params.get(param)
            if value is True:
                line.append(option)
            elif value is not None and value is not False:
                line += [option, str(value)]
        if "--publish-anyway" in line:  # for the manifest: the driver's user is not who decided
            line += ["--by", context["dag_run"].triggering_user_name or "airflow"]
        for setting in params.get("set") or []:
            line += ["--set", run.fill(setting)]
        return line

    def _succeeded(self, context: Any, summary: dict[str, Any]) -> dict[str, Any]:
        tags = {"dag_id": self.dag_id, "task_id": self.task_id, "job": self.job}
        for name, value in summary.items():
            if isinstance(value, int | float):
                stats.gauge(f"lakerank.{self.job}.{name}", float(value), tags=tags)
        if report := self._report(context, summary):
            context["ti"].xcom_push(key="report", value=report)
            self.log.info("report: %s", report)
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = summary
        return summary

    def _report(self, context: Any, summary: Mapping[str, Any]) -> str | None:
        """The report's address: as a browser reaches it, where the deployment has a report_url."""
        if "report" in summary and self.report_url:
            return self._run(context).fill(self.report_url)
        return summary.get("report")
