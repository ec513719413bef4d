"""What the DAG files share. Imports Airflow and the standard library only: the jobs run elsewhere, by spark-submit."""
