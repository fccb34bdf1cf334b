# Breakwater on one machine. `make up` starts everything; every port moves with a variable: make up EDGE_HTTP_PORT=9080
PYTHON ?= python3
LAUNCH = @$(PYTHON) -m stack.launch
# The value of a variable as one word of the shell, whatever is in it (to export it, make would run a $(shell …) in it).
unexport SERVICE N LINES FILE ID
one_word = '$(subst ','\'',$(value $(1)))'
OF_SERVICE = $(if $(value SERVICE),--service $(call one_word,SERVICE))
NUMBER = $(if $(value N),--number $(call one_word,N))

.PHONY: help up down status logs kill stop start scale mail seed recount plan token run docs dead-letters test test-long test-compose bench lint lock clean

help:
	@echo "make up | down | status | seed | plan | test | test-long | test-compose | bench | lint"
	@echo "make test [BACKENDS=full]        full: the services' own tests on PostgreSQL as well"
	@echo "make test-long                   the tests that take a minute or more each"
	@echo "make up [EVENTS=rabbitmq]         events by RabbitMQ in place of Redis"
	@echo "make lock [UPGRADE=1]            make the lock files anew from requirements*.in"
	@echo "make clean                       take away state and virtual environment; packages stay"
	@echo "make recount                     count everybody's posts anew"
	@echo "make logs [SERVICE=users] [LINES=40] [FOLLOW=1]"
	@echo "make kill SERVICE=users N=1      kill -9 the first instance; it is started again"
	@echo "make stop SERVICE=users [N=2]    drain and stop all, or two instances"
	@echo "make start SERVICE=users [N=2]   start them again"
	@echo "make scale SERVICE=users N=5     run five instances"
	@echo "make mail [N=5]                  the last mails that went to the stack's own mail server"
	@echo "make dead-letters [SERVICE=users] [ID=…] [REPLAY=1]   events that services gave up: list, show, deliver again"
	@echo "make docs                        make docs/events/asyncapi.yaml anew from the code"
	@echo "make run SERVICE=hello FILE=hello.py   run a service of your own in the foreground"
	@echo "make token SERVICE=hello         the file with its Consul token"

up down status seed recount plan docs lint lock clean:
	$(LAUNCH) $@

logs:
	$(LAUNCH) logs $(OF_SERVICE) $(if $(value LINES),--lines $(call one_word,LINES)) $(if $(value FOLLOW),--follow)

kill stop start scale:
	$(LAUNCH) $@ $(OF_SERVICE) $(NUMBER)

mail:
	$(LAUNCH) $@ $(NUMBER)

token:
	$(LAUNCH) token $(call one_word,SERVICE)

dead-letters:
	$(LAUNCH) dead-letters $(OF_SERVICE) $(if $(value ID),--id $(call one_word,ID)) $(if $(filter-out 0,$(value REPLAY)),--replay)

run:
	$(LAUNCH) run $(call one_word,FILE) $(OF_SERVICE)

# ARGS go to pytest: make test ARGS="tests/unit -q". BACKENDS comes to the tests by the environment.
test test-long test-compose bench:
	$(LAUNCH) $@ $(ARGS)
