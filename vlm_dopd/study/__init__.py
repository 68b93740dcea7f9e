"""Studies: methods × ablations × seeds, one child process each, then one table and one page.

Read in this order: `plan` (the file, and the tasks that follow from it), `worker` (one task), `pool` (all of them),
`collect` (the numbers), `statistics`, `page`. A worker imports what it needs and nothing of the page.

study folder
  study.json, study.md, study.html   rebuilt from the cells at any time
  references/NAME/                   student and teacher as they are: answers.jsonl
  cells/NAME/seed-N/                 one training: stage-N/ (run folder), stage-N.jsonl (answers), result.json, log.txt
"""
