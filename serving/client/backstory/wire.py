"""Plain values <-> messages. Shared by the blocking and the async client; no I/O."""
from backstory import schema
from backstory.types import (AppendResult, CacheReport, EncodedItem, Explained, Exposure, RankResult, RecommendResult,
                             Recommendation, UpsertResult, to_us)

ACTIONS = {"click": 1, "conversion": 2, "like": 3, "rating": 4, "dwell": 5, "purchase": 6, "dislike": 7, "share": 8}


def user_ref(target, user):
    if isinstance(user, bool) or not isinstance(user, (str, int)):
        raise TypeError(f"user: a str or an int, not {type(user).__name__}")
    if isinstance(user, int):
        target.user_id = user
    else:
        target.user = user


def _feature(target, name, value):
    if isinstance(value, str):
        target.text = value
    elif isinstance(value, (int, float)):
        target.number = value
    else:
        raise TypeError(f"features[{name!r}]: a str or a number, not {type(value).__name__}")


def _choice(field, enum, value):
    try:
        return schema.enum(enum, f"{field.upper()}_{value.upper()}")
    except KeyError:
        raise ValueError(f"{field}: {value!r} is not known") from None


def _model(target, model):
    target.SetInParent()
    if model is None:
        return
    target.name = model.name
    if model.version:
        target.version = model.version
    elif model.label:
        target.label = model.label


def _envelope(request, namespace, user, *, scene="", device="", session="", request_id=0, model=None, now=None,
              as_of=None, known_by=None, criticality="online", features=None, parameters=None, explain_top=0,
              timings=False, suppress_exposure=False):
    """What rank and recommend requests have in common."""
    request.namespace, request.scene, request.request_id, request.now_us = namespace, scene, request_id, to_us(now)
    request.explain_top, request.stage_timings, request.suppress_exposure = explain_top, timings, suppress_exposure
    request.criticality = _choice("criticality", "Criticality", criticality)
    user_ref(request.units.user, user)
    request.units.device, request.units.session = device, session
    if model is not None:
        _model(request.model, model)
    if as_of is not None:
        request.as_of.event_time_us = to_us(as_of)
    if known_by is not None:
        request.as_of.known_by_us = to_us(known_by)
    for name, value in (features or {}).items():
        _feature(request.features[name], name, value)
    for name, value in (parameters or {}).items():
        request.parameters[name] = str(value)


def rank_request(namespace, user, items, *, columns=None, **envelope):
    request = schema.message("RankRequest")()
    _envelope(request, namespace, user, **envelope)
    request.candidates.item_ids.extend(int(item) for item in items)
    for name, values in (columns or {}).items():
        values = list(values)
        text = bool(values) and isinstance(values[0], str)
        column = request.candidates.texts.add() if text else request.candidates.numbers.add()
        column.name = name
        column.values.extend(values)
    return request


def recommend_request(namespace, user, count, *, beam=0, exclude=(), categories=(), exclude_seen=None, per_sid_max=None,
                      rank=False, rank_model=None, rank_candidates=0, **envelope):
    request = schema.message("RecommendRequest")(count=count, beam=beam, include_categories=categories)
    _envelope(request, namespace, user, **envelope)
    request.exclude_item_ids.extend(int(item) for item in exclude)
    if exclude_seen is not None:
        request.exclude_seen = exclude_seen
    if per_sid_max is not None:
        request.per_sid_max = per_sid_max
    if rank or rank_model is not None:
        request.rank.candidates = rank_candidates
        _model(request.rank.model, rank_model)
    elif rank_candidates:
        raise ValueError("rank_candidates: needs rank or rank_model")
    return request


def recommend_result(response):
    items = [Recommendation(i.item_id, i.log_probability, list(i.sid), i.score,
                            {t.task: t.calibrated for t in i.ranked}, _explained(i.explanation), i.search_gate)
             for i in response.items]
    filtered = response.filtered
    return RecommendResult(
        items=items, beam=response.beam, sids_found=response.sids_found, partial=response.partial,
        partial_reason=response.partial_reason, rank_model=response.rank_model, rank_version=response.rank_version,
        filtered={"excluded": filtered.excluded, "seen": filtered.seen, "category": filtered.category,
                  "per_sid": filtered.per_sid}, **_common(response))


def delete_request(namespace, user):
    request = schema.message("DeleteRequest")(namespace=namespace, all=True)
    user_ref(request.user, user)
    return request


def prefetch_request(namespace, user):
    request = schema.message("PrefetchRequest")(namespace=namespace)
    user_ref(request.user, user)
    return request


def _explained(explanation):
    return [Explained(a.channel, a.event_id, a.time_us, a.item_id, a.mass) for a in explanation.events]


def _common(response):
    """What rank and recommend replies have in common."""
    return dict(
        model=response.model, version=response.version, config_version=response.config_version, seq=response.seq,
        epoch=response.epoch, now_us=response.now_us, rows_visible=list(response.rows_visible),
        parameters={p.name: p.value for p in response.parameters}, degrade_step=response.degrade_step,
        exposures=[Exposure(e.layer, e.experiment, e.arm, e.unit, e.reason) for e in response.exposures],
        cache=cache_report(response.cache), timings_us={t.stage: t.duration_us for t in response.timings},
        unknown_user=response.unknown_user)


def rank_result(items, response):
    return RankResult(
        items=[int(item) for item in items],
        probabilities={column.task: list(column.calibrated) for column in response.scores},
        logits={column.task: list(column.raw_logit) for column in response.scores},
        explanations=[_explained(candidate) for candidate in response.explanations],
        unknown_items=list(response.unknown_items), **_common(response))


def cache_report(report):
    return CacheReport(report.source, report.tier, report.rows_reused, report.rows_computed, report.rows_loaded,
                       report.state_bytes)


def append_request(namespace, user, events, durability):
    request = schema.message("AppendRequest")(namespace=namespace)
    request.durability = _choice("durability", "Durability", durability)
    user_ref(request.user, user)
    for event in events:
        target = request.events.add(
            event_id=event.event_id, revision=event.revision, tombstone=event.tombstone, time_us=to_us(event.time_us),
            item_id=event.item_id, request_id=event.request_id, position=event.position, scene=event.scene,
            value=event.value, exposure_id=event.exposure_id)
        target.kind = schema.enum("EventKind", "EVENT_KIND_EXPOSURE" if event.action is None else "EVENT_KIND_ACTION")
        if isinstance(event.action, str):
            if event.action not in ACTIONS:
                raise ValueError(f"action: {event.action!r} is none of {', '.join(ACTIONS)} or 1000..65535")
            target.action = ACTIONS[event.action]
        elif event.action is not None:
            target.action = event.action
        for name, value in event.context.items():
            target.context.add(name=name, value=value)
    return request


def append_result(response):
    return AppendResult(response.accepted, response.duplicate, response.conflict, response.late, response.rejected,
                        response.seq, [(refusal.index, refusal.reason) for refusal in response.refusals])


def upsert_request(namespace, items):
    request = schema.message("UpsertItemsRequest")(namespace=namespace)
    for item in items:
        target = request.items.add(item_id=item.item_id, categories=item.categories, sid=item.sid, year=item.year,
                                   title=item.title, text=item.text, embedding=item.embedding,
                                   embedding_space=item.embedding_space)
        target.numbers.update(item.numbers)
        target.strings.update(item.strings)
    return request


def upsert_result(response):
    return UpsertResult(response.version,
                        [EncodedItem(e.item_id, e.model, e.version, list(e.sid)) for e in response.encoded])
