from graft.recipe.levers import Use, levers


def test_levers_stand_in_the_order_of_what_they_cost_and_only_where_they_save():
    use = Use(rows=4, length=512, rank=16, row=100, recomputed=280, states=50, packed=1000, trained=60)
    assert [(lever.change, lever.saves) for lever in levers(use)] == [
        ("train.micro_batch_size=2", 200),
        ("train.optimizer=paged_adamw_8bit", 50),
        ("train.gradient_checkpointing=true", 280),
        ("quant=nf4", 1000),
        ("data.max_length=256", 200),
        ("method.r=8", 30),
    ]
    used_up = Use(rows=1, length=512, rank=0, row=100, recomputed=0, states=0, packed=0, trained=60)
    assert [lever.change for lever in levers(used_up)] == ["data.max_length=256"]
